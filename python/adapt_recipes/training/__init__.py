"""Training by supervision (`sft`) and by reinforcement (`rl`), with runs that resume to the last bit."""
