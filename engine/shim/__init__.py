"""One small process per container, forked from a zygote; standard library only. `wire` tells the whole story."""
