"""Who somebody is: backends, their order, what is remembered of their answers, and the limit on guessing."""
