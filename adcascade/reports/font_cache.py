"""Where matplotlib keeps its list of fonts: outside the home directory, kept from one command to the next."""

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path


def font_cache_folder() -> str:
    """A folder below the temporary one that nobody but this user can write to; made where it is missing.

    If that name is somebody else's, a folder of this process alone, removed at its end.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else ""  # Windows has a temporary folder for each user
    folder = Path(tempfile.gettempdir(), f"adcascade-matplotlib-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return _of_this_process()
    own = stat.S_ISDIR(found.st_mode) and (not user or found.st_uid == os.getuid())
    private = not user or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return str(folder) if own and private else _of_this_process()


def _of_this_process() -> str:
    folder = tempfile.mkdtemp(prefix="adcascade-matplotlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
