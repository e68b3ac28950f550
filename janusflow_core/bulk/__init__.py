"""Many pictures and many texts: in batches, over any number of processes, stopped and gone on with."""
