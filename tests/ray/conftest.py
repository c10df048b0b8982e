"Two Ray nodes on this machine, as processes of their own, each with a CPU and an environment of its own."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripted_server


def patiently(start):
    "What `start()` gives; again where a busy machine needs more than the half minute that Ray gives a node to start in"
    for left in reversed(range(6)):
        try: return start()
        except Exception as e:
            if "timed out during startup" not in str(e) or not left: raise


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    import ray
    from ray.cluster_utils import Cluster
    own = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OWN", str(own / "head"))
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False)))
    cluster.own, cluster.other = own, None
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def nodes(started, tmp_path, monkeypatch):
    "The cluster, with both nodes alive; an empty folder to work in"
    if started.other not in started.worker_nodes: started.other = patiently(lambda: started.add_node(num_cpus=1, env_vars={"OWN": str(started.own / "other")}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMDATA_STORE", raising=False)
    return started
