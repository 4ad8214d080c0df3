"""The names in settings, and the table."""

import subprocess
import sys
from typing import get_args

from florence2ner.metrics.names import ALWAYS, MetricName, whole_name
from florence2ner.metrics.table import METRICS


def test_every_name_has_its_row_in_the_table() -> None:
    assert tuple(METRICS) == get_args(MetricName)
    assert {*ALWAYS} < {*METRICS}


def test_short_names_are_completed() -> None:
    assert whole_name("cider") == "eval/cider"
    assert whole_name("eval/cider") == "eval/cider"
    assert whole_name(3) == 3


def test_settings_need_no_packages_and_the_table_none_of_its_own() -> None:
    for module, strangers in (("names", {"numpy"}), ("table", {"sacrebleu", "rouge_score", "nltk", "torch"})):
        code = f"import sys, florence2ner.metrics.{module}; print({strangers} & {{*sys.modules}})"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
