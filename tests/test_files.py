"""Files and folders, here and in a bucket."""

from isles_jax.runtime import files


def test_a_local_path_is_fetched_as_itself_and_a_bucket_as_a_copy(bucket):
    (bucket / "folder" / "inner").mkdir(parents=True)
    (bucket / "folder" / "inner" / "file").write_bytes(b"content")
    assert files.fetch(bucket) == bucket
    copied = files.fetch("gs://bucket/folder")
    assert copied.parts[-2:] == ("bucket", "folder")
    assert (copied / "inner" / "file").read_bytes() == b"content"
    assert files.fetch("gs://bucket/folder/inner/file").read_bytes() == b"content"
    assert not files.fetch("gs://bucket/nothing").exists()
