"""One runtime process and its tree: started, read, ended, and reclaimed after a crash."""
