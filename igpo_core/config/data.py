"""The worlds that a specification's `data` section can name, and the demonstrations of each for a warm start."""

from typing import Annotated

from pydantic import Field

from igpo_core.environments.atlas import AtlasDemonstrations, AtlasWorld
from igpo_core.environments.calculator import CalculatorDemonstrations, CalculatorWorld
from igpo_core.environments.lookup import LookupDemonstrations, LookupWorld
from igpo_core.environments.question_files import FileDemonstrations, QuestionFiles

DataConfig = Annotated[LookupWorld | AtlasWorld | CalculatorWorld | QuestionFiles, Field(discriminator="kind")]
DemonstrationsConfig = Annotated[
    LookupDemonstrations | AtlasDemonstrations | CalculatorDemonstrations | FileDemonstrations,
    Field(discriminator="kind"),
]
