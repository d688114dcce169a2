"""What runs on a runner: agent, zygote and slots (docs/decisions/0003)."""
