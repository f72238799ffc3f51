"""The folder that holds this project."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
