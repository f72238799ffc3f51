"""Ready-made work to plant."""

CHEATS = []
OTHERS = []
