from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlcore.errors import ImageError, OptionError
from vlcore.media.image import load_image
from vlcore.media.policy import ImageAccess


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "allowed"
    (directory / "inner").mkdir(parents=True)
    for file in (directory / "a.png", directory / "inner" / "b.png", tmp_path / "outside.png"):
        file.write_bytes(png())
    return directory


def test_no_file_is_read_unless_its_directory_is_allowed(allowed: Path) -> None:
    file = allowed / "a.png"
    for source in (file, str(file), file.as_uri(), "/etc/passwd", "~/x.png", "/dev/zero"):
        with pytest.raises(ImageError, match="not in a directory from which files may be read"):
            load_image(source, access=ImageAccess())


def test_data_urls_and_bytes_are_always_read() -> None:
    for source in (png(), "data:image/png;base64," + base64.b64encode(png()).decode()):
        assert load_image(source, access=ImageAccess(urls=False)).size == (2, 2)


def test_files_below_an_allowed_directory_are_read(allowed: Path) -> None:
    access = ImageAccess(allowed_directories=[allowed])
    for file in (allowed / "a.png", allowed / "inner" / "b.png"):
        assert load_image(file, access=access).size == (2, 2)
        assert load_image(file.as_uri(), access=access).size == (2, 2)


def test_nothing_leads_out_of_an_allowed_directory(allowed: Path) -> None:
    access = ImageAccess(allowed_directories=[allowed])
    (allowed / "link.png").symlink_to(allowed.parent / "outside.png")
    (allowed / "up").symlink_to(allowed.parent)
    for source in (
        f"{allowed}/../outside.png",
        f"file://{allowed}/%2e%2e/outside.png",
        f"{allowed}/inner/../a.png",
        f"{allowed}/link.png",
        f"{allowed}/up/outside.png",
        f"{allowed}/absent.png",
        f"{allowed}-2/a.png",
        f"{allowed}/a\0.png",
        str(allowed),
    ):
        with pytest.raises(ImageError):
            load_image(source, access=access)


POSIX_ONLY = (
    *("O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"),
    *("fork", "register_at_fork", "sched_getaffinity", "process_cpu_count", "geteuid", "mkfifo"),
)
WITHOUT_POSIX = f"""
import os, sys
import torch  # goes by sys.platform, which stays that of this machine
for name in {POSIX_ONLY}:
    if hasattr(os, name):
        delattr(os, name)
os.supports_dir_fd.discard(os.open)
import vlcore
from vlcore._utils.resources import num_cpus
from vlcore.errors import ImageError
from vlcore.media.image import load_image
allowed, outside = sys.argv[1:]
access = vlcore.ImageAccess(allowed_directories=[allowed])
for options in ({{}}, {{"access": access}}):
    assert load_image(os.path.join(allowed, "inner", "b.png"), **options).size == (2, 2)
for name in ("link.png", "up/outside.png", "absent.png", "inner", "../outside.png"):
    try:
        load_image(os.path.join(allowed, name), access=access)
    except ImageError:
        continue
    raise SystemExit(f"{{name}} was read")
assert num_cpus() >= 1
print("done")
"""


@pytest.mark.slow
def test_local_images_need_nothing_that_only_posix_has(allowed: Path) -> None:
    (allowed / "link.png").symlink_to(allowed.parent / "outside.png")
    (allowed / "up").symlink_to(allowed.parent)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, str(allowed), str(allowed.parent / "outside.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_a_pipe_is_refused_at_once(allowed: Path) -> None:
    os.mkfifo(allowed / "pipe.png")
    with pytest.raises(ImageError, match="not in a directory"):
        load_image(allowed / "pipe.png", access=ImageAccess(allowed_directories=[allowed]))


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": "a.example"},
        {"allowed_networks": ["10.0.0.1/8"]},
        {"allowed_networks": ["nowhere"]},
        {"allowed_directories": Path("/")},
        {"allowed_directories": None},
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(settings))):
        ImageAccess(**settings)
