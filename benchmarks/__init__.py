"""Side-by-side programs: berth against dockerd and registry:2 on one machine, alternating rounds, medians, ratios."""
