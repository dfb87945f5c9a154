"""A Ray cluster of several nodes on this machine, each with processes of its own; lines on stdin say what to do.

Run by a Python that has Ray: `cluster_nodes.py NODES`. It prints the address, and answers each line: "lose" kills a
node at once, "end" ends all.
"""

import logging
import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

HERE = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
logging.disable(logging.WARNING)
# The first has no room for workers: it is where the cluster keeps its books.
cluster = Cluster(initialize_head=True, head_node_args={**HERE, "num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(**HERE) for _ in range(int(sys.argv[1]))]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        break
    print("done", flush=True)
cluster.shutdown()
