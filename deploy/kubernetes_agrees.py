"""Whether the files in deploy/kubernetes are YAML, and agree with what the same things are elsewhere in the repository.

Run by deploy/validate, from the repository's root. Prints what does not agree; exit code 1 then.
"""

import re
import sys
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

HERE = Path("deploy/kubernetes")
ADVANCED = Path("deploy/rabbitmq/advanced.config")
CONF = Path("deploy/rabbitmq/rabbitmq.conf")


def main():
    resources = {}
    wrong = []
    for path in sorted(HERE.glob("*.yaml")):
        try:
            for resource in YAML(typ="safe").load_all(path):
                resources[resource["kind"], resource.get("metadata", {}).get("name")] = resource
        except YAMLError as error:
            wrong.append(f"{path}: {error}")
    if not wrong:
        wrong = [*rabbitmq(resources), *worker(resources), *autoscaling(resources)]
    print("\n".join(wrong))
    sys.exit(bool(wrong))


def rabbitmq(resources):
    """The broker is set up the same by Kubernetes, by Compose and by the services script."""
    settings = resources["RabbitmqCluster", "rabbitmq"]["spec"]["rabbitmq"]
    if terms(settings["advancedConfig"]) != terms(ADVANCED.read_text()):
        yield f"rabbitmq.yaml: advancedConfig has other terms than {ADVANCED}"
    if lines(settings["additionalConfig"]) != lines(CONF.read_text()):
        yield f"rabbitmq.yaml: additionalConfig has other settings than {CONF}"
    mounted = YAML(typ="safe").load(Path("docker-compose.yml"))["services"]["rabbitmq"]["volumes"]
    for path in (ADVANCED, CONF):
        if f"./{path}:/etc/rabbitmq/{path.name}:ro" not in mounted:
            yield f"docker-compose.yml does not mount {path}"
    script = Path("deploy/services.d/rabbitmq.sh").read_text()
    if f'cp "$ROOT/{ADVANCED}" "$rabbitmq_dir/advanced.config"' not in script:
        yield f"deploy/services.d/rabbitmq.sh does not take {ADVANCED}"


def terms(erlang):
    """Without comments and spaces. None of our terms has a string, in which they would count."""
    return "".join(re.sub(r"%.*", "", erlang).split())


def lines(conf):
    return [line for line in map(str.strip, conf.splitlines()) if line and not line.startswith("#")]


def worker(resources):
    """A worker is given the time that it gives itself."""
    pod = resources["Deployment", "worker"]["spec"]["template"]["spec"]
    sections = "".join(path.read_text() for path in (Path("kyhan.toml"), HERE / "kyhan.toml"))
    # The deployment's own file comes last, and wins.
    grace_ms = re.findall(r"^\[worker\]\n(?:(?!\[).*\n)*?grace_ms = (\d+)", sections, re.MULTILINE)[-1]
    if pod["terminationGracePeriodSeconds"] * 1000 <= int(grace_ms):
        yield f"worker.yaml: terminationGracePeriodSeconds is not longer than worker.grace_ms, {grace_ms}"


def autoscaling(resources):
    """Every kind's lane adds workers, and the forecast asks for a metric that there is."""
    triggers = resources["ScaledObject", "worker"]["spec"]["triggers"]
    queues = {trigger["metadata"].get("queueName") for trigger in triggers}
    for task in sorted(Path("shared/src/tasks").glob("*.rs")):
        lane = f"kyhan.due.{task.stem.replace('_', '-')}.0"
        if lane not in queues:
            yield f"autoscaling.yaml has no trigger for {lane}"
    source = Path("worker/src/forecast.rs").read_text()
    name = re.search(r'u64_observable_gauge\("([^"]+)"\)', source)[1].replace(".", "_")
    stretches = set(re.findall(r'\("([^"]+)", -?\d+, \d+\)', source))
    queries = [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]
    for query in queries:
        asked = re.search(name + r'\{within=~"([^"]+)"\}', query)
        if not asked or not stretches.issuperset(asked[1].split("|")):
            yield f"autoscaling.yaml asks for {query}, and the metric is {name} within {', '.join(sorted(stretches))}"


main()
