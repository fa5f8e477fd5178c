"""S3 servers on loopback and one Ray, for every test that wants them."""

import os
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import ray
from hypothesis import settings
from moto.server import ThreadedMotoServer

if not Path("/dev/nvidia0").exists():  # before anything imports triton: its kernels are then interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("untimed", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("untimed")

S3_SERVER = Path(__file__).parents[1] / "infra" / "s3_server.sh"


@dataclass(frozen=True)
class S3:
    """A running server. Its keys are in the environment, where boto3 (and every child process) finds them."""

    endpoint_url: str
    access_key: str = "test"
    secret_key: str = "testsecret"

    def new_bucket(self) -> str:
        """The name of an empty bucket that nobody else uses."""
        name = f"test-{uuid.uuid4().hex}"
        boto3.Session().client("s3", endpoint_url=self.endpoint_url).create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def aws_keys() -> Iterator[None]:
    """The servers' keys, and nothing of the developer's own AWS setup."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", S3.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def moto_s3(aws_keys: None) -> Iterator[S3]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3(f"http://{host}:{port}")
    server.stop()


@pytest.fixture(scope="session")
def radosgw_s3(aws_keys: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Ceph's server, if `infra/s3_server.sh get` has fetched it; PAGEREEL_TEST_S3=radosgw fetches it here."""
    if not _use_radosgw():
        pytest.skip("no RadosGW here: infra/s3_server.sh get")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path_factory.mktemp("rgw")
    settings = os.environ | {"PAGEREEL_RADOSGW_PORT": str(port), "PAGEREEL_RADOSGW_RUN": str(run)}
    subprocess.run([S3_SERVER, "get"], env=settings, check=True)
    try:
        subprocess.run([S3_SERVER, "start"], env=settings, check=True)
        yield S3(f"http://127.0.0.1:{port}")
    finally:
        subprocess.run([S3_SERVER, "stop"], env=settings, check=True)


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> S3:
    """The best S3 server there is: RadosGW, else moto's. PAGEREEL_TEST_S3=moto or =radosgw decides."""
    server: S3 = request.getfixturevalue("radosgw_s3" if _use_radosgw() else "moto_s3")
    return server


def _use_radosgw() -> bool:
    software = Path(os.environ.get("PAGEREEL_RADOSGW", Path.home() / ".cache" / "pagereel" / "radosgw"))
    wanted = os.environ.get("PAGEREEL_TEST_S3", "radosgw" if (software / "tree").exists() else "moto")
    return wanted == "radosgw"


@pytest.fixture(scope="session")
def ray_address(aws_keys: None) -> Iterator[str]:
    """The address of a Ray cluster on this machine that the tests share; this process is connected to it."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)  # short: it is part of the names of sockets
        patch.setenv("RAY_AUTH_MODE", "disabled")  # its token would be written into the developer's home
        patch.delenv("RAY_ADDRESS", raising=False)
        context = ray.init(
            address="local", num_cpus=8, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()
