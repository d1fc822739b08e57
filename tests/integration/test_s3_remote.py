"""Remotes in buckets, on a real S3-compatible server: killed pushes, damaged objects, and three kinds of refusal."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from small_project import assert_one_line_error, drp, make_project, start, wait_for

from dr_platform import lineage
from dr_platform.errors import LineageError

FILES = 80  # of each visibility: enough for a kill to fall between the first and the last
BUCKETS = {"public": "drp-public", "private": "drp-private"}
NEVER = 10**9
KEY, SECRET = "AKIAPHANTOMPHANTOM00", "a-secret-that-no-message-may-hold-4711"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """The address of a fresh S3 server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("s3") / "log", "w")  # noqa: SIM115
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(NEVER)}
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        log.close()


def client(endpoint: str, service: str = "s3"):
    return boto3.client(
        service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


def objects(s3, bucket: str) -> dict[str, bytes]:
    """MD5 as the name says -> bytes."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    found = {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys if "/files/md5/" in key}
    return {"".join(key.split("/")[-2:]): content for key, content in found.items()}


def count(s3, bucket: str) -> int:
    return s3.list_objects_v2(Bucket=bucket).get("KeyCount", 0)


def configure(root: Path, endpoint: str, key: str = KEY, secret: str = SECRET, buckets=BUCKETS) -> None:
    """Remotes as a user sets them: places in the shared configuration, credentials in the local one."""
    lineage.init_project(root)
    with lineage._config(root).edit("repo") as config:
        for name, bucket in buckets.items():
            place = {"url": f"s3://{bucket}/store", "endpointurl": endpoint, "region": "us-east-1"}
            config["remote"][name] = {**place, "verify": True}
    with lineage._config(root).edit("local") as config:
        for name in buckets:
            config.setdefault("remote", {})[name] = {"access_key_id": key, "secret_access_key": secret}


def contents(root: Path) -> dict[str, bytes]:
    raw = root / "data/raw"
    return {str(path.relative_to(raw)): path.read_bytes() for path in raw.rglob("*") if path.suffix == ".jpg"}


@pytest.fixture(scope="module")
def project(endpoint, tmp_path_factory) -> Path:
    """A project with a collection of each visibility and nothing in its buckets."""
    root = make_project(tmp_path_factory.mktemp("s3") / "project")
    (root / "dvc.yaml").unlink()
    configure(root, endpoint)
    for visibility in ("public", "proprietary"):
        collection = root / "data/raw" / visibility / "clinic"
        collection.mkdir()
        for number in range(FILES):
            (collection / f"{number:03}.jpg").write_bytes(f"{visibility} {number}".encode() + os.urandom(2000))
        lineage.track(root, collection, visibility)
    s3 = client(endpoint)
    for bucket in BUCKETS.values():
        s3.create_bucket(Bucket=bucket)
    return root


def fresh_checkout(project: Path, root: Path) -> Path:
    """What git would carry, and this user's own credentials; no cache and no data."""
    make_project(root)
    (root / "dvc.yaml").unlink()
    shutil.copytree(project / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for visibility in ("public", "proprietary"):
        shutil.copy(project / f"data/raw/{visibility}/clinic.dvc", root / f"data/raw/{visibility}")
    return root


@pytest.fixture(scope="module")
def pushed(endpoint, project) -> Path:
    """The project after a push that was killed half-way, and a second one."""
    s3 = client(endpoint)
    process = start(project, sys.executable, "-m", "dr_platform.cli.main", "data", "push")
    wait_for(lambda: sum(count(s3, bucket) for bucket in BUCKETS.values()) >= 20, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    arrived = {bucket: objects(s3, bucket) for bucket in BUCKETS.values()}
    total = sum(map(len, arrived.values()))
    assert 20 <= total < 2 * FILES, "the kill must fall between the first object and the last"
    for stored in arrived.values():
        assert all(hashlib.md5(content).hexdigest() == name for name, content in stored.items() if "." not in name)
    done = drp(project, "data", "push")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_a_killed_push_is_completed_by_the_next_and_comes_back_byte_for_byte(endpoint, pushed, tmp_path):
    s3 = client(endpoint)
    for name, visibility in (("public", "public"), ("private", "proprietary")):
        stored = objects(s3, BUCKETS[name])
        assert len(stored) == FILES + 1  # and the listing
        assert {content[:6] for digest, content in stored.items() if "." not in digest} == {visibility.encode()[:6]}
    root = fresh_checkout(pushed, tmp_path / "checkout")
    done = drp(root, "data", "pull")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(contents(root)) == 2 * FILES
    assert contents(root) == contents(pushed)


def test_a_changed_object_in_a_bucket_is_refused_by_name(endpoint, pushed, tmp_path):
    s3 = client(endpoint)
    victim = pushed / "data/raw/public/clinic/007.jpg"
    digest = hashlib.md5(victim.read_bytes()).hexdigest()
    key = f"store/files/md5/{digest[:2]}/{digest[2:]}"
    s3.put_object(Bucket=BUCKETS["public"], Key=key, Body=victim.read_bytes()[:-1])
    root = fresh_checkout(pushed, tmp_path / "checkout")
    try:
        done = drp(root, "data", "pull")
        assert_one_line_error(done, "data/raw/public/clinic/007.jpg is damaged in the remote public", digest[2:])
        assert contents(root) == {}
    finally:
        s3.put_object(Bucket=BUCKETS["public"], Key=key, Body=victim.read_bytes())


def test_three_reasons_have_three_messages_and_none_holds_a_secret(endpoint, project, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://user:{SECRET}@127.0.0.1:{closed.getsockname()[1]}"
        root = fresh_checkout(project, tmp_path / "checkout")
        wrong = {
            "does not answer": {"endpoint": nobody},
            "There is no bucket drp-nowhere": {"endpoint": endpoint, "buckets": {**BUCKETS, "private": "drp-nowhere"}},
            "refuses the credentials": {"endpoint": endpoint, "key": "AKIAWRONGWRONGWRONG0", "secret": SECRET[::-1]},
        }
        said = []
        for words, settings in wrong.items():
            configure(root, **settings)
            checked = words == "refuses the credentials"
            count_until_checked(endpoint, 0 if checked else NEVER)
            try:
                done = drp(root, "data", "push")
                assert_one_line_error(done, words, "dvc remote modify")
                with pytest.raises(LineageError) as caught:
                    lineage.pull(root)
                assert str(caught.value) in done.stderr
                for secret in (SECRET, SECRET[::-1], KEY, "AKIAWRONG"):
                    assert secret not in done.stdout + done.stderr
                said.append(done.stderr)
            finally:
                count_until_checked(endpoint, NEVER)
    assert len(set(said)) == 3


def count_until_checked(endpoint: str, calls: int) -> None:
    """Let the server check signatures after so many calls: it accepts any key until then."""
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", str(calls).encode(), kind, method="POST")
    urllib.request.urlopen(request, timeout=10).close()
