"""A Ray cluster of this machine in a process of its own, which it ends with: `python -m` this file.

It writes its address, and for each line that it reads it ends one of its further nodes.
"""

import sys

if __name__ == "__main__":
    from ray.cluster_utils import Cluster

    head, further = int(sys.argv[1]), int(sys.argv[2])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": head, "num_gpus": 0, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=1, num_gpus=0) for _ in range(further)]
    print(f"ADDRESS {cluster.address}", flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("ENDED", flush=True)
    cluster.shutdown()
