"""Running the examples of a docstring, for the tests."""

import doctest
import re

import numpy as np

NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


class CloseEnough(doctest.OutputChecker):
    """Equal but for the last digit shown: processors and versions of torch round in different ways."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        texts, numbers = zip(*[(NUMBER.sub("", text), NUMBER.findall(text)) for text in (want, got)], strict=True)
        return texts[0].split() == texts[1].split() and np.allclose(*np.array(numbers, dtype=float), rtol=0, atol=2e-4)


def run_examples(name, docstring):
    """Run the examples in order; fails with what they printed where that is something else."""
    examples = doctest.DocTestParser().get_doctest(docstring, {"__name__": name}, name, name, 0)
    assert examples.examples
    said = []
    found = doctest.DocTestRunner(CloseEnough(), verbose=False).run(examples, out=said.append)
    assert not found.failed, "".join(said)
