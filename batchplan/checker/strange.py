"""Keys of a run's files that are in no list of the release they are for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.checker.launched import flag_name
from batchplan.checker.roles import CONFIGS, LAUNCH, SCRIPT, table_of
from batchplan.checker.subject import Subject
from batchplan.configfile import ConfigFile, Format, Path
from batchplan.sources.trainer_keys import Renamed, TrainerKeys

COMPONENT = "_component_"
"""The key of a section of torchtune's that names what the others are arguments of."""
_FLAG = "--"
_FSDP_PREFIX = "fsdp_"
"""Cut off every key of ``fsdp_config``. Source: transformers training_args.py,
_process_fsdp_args; axolotl utils/schemas/validation.py, check_fsdp_config_kwargs_prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangeKey:
    """One key, and the list that lacks it."""

    file: ConfigFile
    path: Path
    below: int
    keys: TrainerKeys
    name: str
    """Of the list."""

    @property
    def inner(self) -> tuple[str, ...]:
        """The path in that list."""
        words = tuple(map(str, self.path[self.below :]))
        return tuple(flag_name(words[0]).split(".")) if self.is_flag else words

    @property
    def is_flag(self) -> bool:
        """Whether it is one of a launch command, which may be the launcher's or the script's."""
        return self.file.format is Format.SHELL

    def path_of(self, *names: str) -> Path:
        """Return where another key of the list stands, or would."""
        written = (_FLAG + ".".join(names),) if self.is_flag else names
        return (*self.path[: self.below], *written)

    @property
    def dotted(self) -> str:
        """The same in one word."""
        return ".".join(self.inner)

    @property
    def is_known(self) -> bool:
        """Whether the list has it, or has nothing of the section it lies in."""
        section = ".".join(self.inner[:-1])
        listed = self.keys.files[self.name].keys
        is_bare = section in listed and not any(one.startswith(f"{section}.") for one in listed)
        bare = f"{section}.{self.inner[-1].removeprefix(_FSDP_PREFIX)}"
        is_prefixed = section == "fsdp_config" and bare in listed
        is_listed = self.keys.is_known(self.name, self.dotted)
        return is_bare or is_prefixed or is_listed or self._is_of_a_strange_component

    @property
    def _is_of_a_strange_component(self) -> bool:
        """Whether its section builds something of which the arguments are not known."""
        built = self.file.entries.get((*self.path[:-1], COMPONENT))
        components = self.keys.files.get("components")
        if built is None or components is None:
            return False
        return not any(name.startswith(f"{built.value}.") for name in components.keys)

    @property
    def renamed(self) -> Renamed | None:
        """What became of it, where it is an older key."""
        renamed = self.keys.renamed
        return renamed.get(f"{self.name}.{self.dotted}") or renamed.get(self.dotted)


def strange_keys(subject: Subject) -> Iterator[StrangeKey]:
    """Yield every key that is in no list; below such a key, nothing more is told."""
    for file in subject.of_role(*CONFIGS, SCRIPT, LAUNCH):
        strange: set[Path] = set()
        for path, entry in file.entries.items():
            if entry.key is None or any(isinstance(part, int) for part in path):
                continue
            table = table_of(subject.trainer, subject.roles[file.name], path)
            if table is None or len(path) <= table.below:
                continue
            keys, name = subject.keys_for(table, file)
            key = StrangeKey(file=file, path=path, below=table.below, keys=keys, name=name)
            if not key.is_known and not any(path[:n] in strange for n in range(1, len(path))):
                strange.add(path)
                yield key
