"""Every system call and netlink message of the daemon; imports nothing of the engine but its errors."""
