"""Files and folders, here and in a bucket."""

import pytest

from isles_jax.runtime import files
from isles_jax.runtime.command import InputError


def test_a_local_path_is_fetched_as_itself_and_a_bucket_as_a_copy(bucket):
    (bucket / "folder" / "inner").mkdir(parents=True)
    (bucket / "folder" / "inner" / "file").write_bytes(b"content")
    assert files.fetch(bucket) == bucket
    copied = files.fetch("gs://bucket/folder")
    assert copied.parts[-2:] == ("bucket", "folder")
    assert (copied / "inner" / "file").read_bytes() == b"content"
    assert files.fetch("gs://bucket/folder/inner/file").read_bytes() == b"content"
    assert not files.fetch("gs://bucket/nothing").exists()


@pytest.mark.parametrize("path", ["", "s3://bucket/case"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="found no path of a kind that can be used"):
        files.fetch(path)


def test_a_device_is_nobodys_earlier_file():
    """ReadOptions one to see whose it is may never end."""
    with pytest.raises(InputError, match="/dev/null: found a file that is not a page"):
        files.refuse_foreign("/dev/null", lambda content: True, "a page")
