"""How a run ended, by names that its summary holds."""

FINISHED = "finished"
INTERRUPTED = "interrupted"
