"""Import what workers of --jobs need, in the process from which they are forked."""

from train.processes import import_all

import_all("train.run", "train.launch.sweep")
