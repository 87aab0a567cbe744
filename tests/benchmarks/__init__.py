"""How fast it is: every figure beside a baseline that is measured in the same run."""
