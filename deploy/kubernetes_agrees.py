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
        wrong = [*rabbitmq(resources), *logins(resources), *composed(), *worker(resources), *autoscaling(resources)]
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


# Whose login each part has, on either server. An administrator's is for the step that makes the logins.
LOGINS = {"roles": (None, "ops"), "migrate": ("owner", "ops"), "declare": ("ops", "ops"), "ops": ("ops", "ops"),
          "producer": ("producer", "producer"), "worker": ("worker", "worker")}


def logins(resources):
    """Each part's pod has its own secrets, and no other part's."""
    pods = {name: resource["spec"]["template"]["spec"] for (kind, name), resource in resources.items()
            if kind in ("Deployment", "Job")}
    containers = {container["name"]: {entry["name"]: entry for entry in container["env"]}
                  for pod in pods.values() for container in pod.get("initContainers", []) + pod["containers"]}
    if containers.keys() != LOGINS.keys():
        yield f"deploy/kubernetes has the containers {', '.join(containers)}; whose logins have they?"
        return
    for part, (database, amqp) in LOGINS.items():
        env = containers[part]
        if secret(env["KYHAN_AMQP_URL"]) != (f"kyhan-{amqp}", "amqp-url"):
            yield f"deploy/kubernetes: {part} does not log in to RabbitMQ as kyhan_{amqp}"
        if database is None:
            if secret(env["KYHAN_DATABASE_URL"]) != ("kyhan-administrator", "database-url"):
                yield f"deploy/kubernetes: {part} does not log in to PostgreSQL as an administrator"
            continue
        url = f"postgres://kyhan_{database}:$(DATABASE_PASSWORD)@$(DATABASE)"
        password = secret(env["DATABASE_PASSWORD"])
        if env["KYHAN_DATABASE_URL"].get("value") != url or password != (f"kyhan-{database}", "database-password"):
            yield f"deploy/kubernetes: {part} does not log in to PostgreSQL as kyhan_{database}"
        foreign = {of for of, _ in filter(None, map(secret, env.values()))} - {f"kyhan-{database}", f"kyhan-{amqp}"}
        if foreign:
            yield f"deploy/kubernetes: {part} is given {', '.join(foreign)}"


def secret(entry):
    held = entry.get("valueFrom", {}).get("secretKeyRef")
    return held and (held["name"], held["key"])


def composed():
    """The same of docker-compose.yml, where `migrate` is two steps."""
    services = YAML(typ="safe").load(Path("docker-compose.yml"))["services"]
    for part, (database, amqp) in LOGINS.items():
        if part not in services:
            continue
        env = services[part]["environment"]
        owner = env.get("OWNER_DATABASE_URL", "") if part == "migrate" else env["KYHAN_DATABASE_URL"]
        role = f"kyhan_{database}:${{POSTGRES_{database.upper()}_PASSWORD:" if database else "${POSTGRES_USER:-kyhan}:"
        if not owner.startswith(f"postgres://{role}"):
            yield f"docker-compose.yml: {part} does not log in to PostgreSQL as {role}"
        if not env["KYHAN_AMQP_URL"].startswith(f"amqp://kyhan_{amqp}:${{RABBITMQ_{amqp.upper()}_PASSWORD:"):
            yield f"docker-compose.yml: {part} does not log in to RabbitMQ as kyhan_{amqp}"
        if part != "roles" and re.search(r"POSTGRES_PASSWORD|RABBITMQ_PASSWORD", str(env)):
            yield f"docker-compose.yml: {part} is given an administrator's password"


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
    tasks = sorted(Path("shared/src/domain/tasks").glob("*.rs"))
    if not tasks:
        yield "no task is found in shared/src/domain/tasks, so that nothing was compared"
    for task in tasks:
        lane = f"kyhan.due.{task.stem.replace('_', '-')}.0"
        if lane not in queues:
            yield f"autoscaling.yaml has no trigger for {lane}"
    source = Path("worker/src/leader/forecast.rs").read_text()
    name = re.search(r'u64_observable_gauge\("([^"]+)"\)', source)[1].replace(".", "_")
    stretches = set(re.findall(r'\("([^"]+)", -?\d+, \d+\)', source))
    queries = [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]
    for query in queries:
        asked = re.search(name + r'\{within=~"([^"]+)"\}', query)
        if not asked or not stretches.issuperset(asked[1].split("|")):
            yield f"autoscaling.yaml asks for {query}, and the metric is {name} within {', '.join(sorted(stretches))}"


main()
