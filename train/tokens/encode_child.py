"""The child of `encode_many.py` that encodes examples: `python -m lorafold.train.tokens.encode_child`.

It reads a pickled ChatTokenizer from standard input, then pickled lists of examples. For each list it writes
a pickled list of (ids, mask, tokens left out) to standard output, or None if an example cannot be encoded.
Both pipes are the parent's own; it ends with its input.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import LorafoldError
from lorafold.train.tokens.encode_one import encode_example


def main() -> None:
    """Serve until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's affair, who closes the pipe
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may come between the answers
    questions = sys.stdin.buffer
    tokenizer: ChatTokenizer = pickle.load(questions)
    while True:
        try:
            examples = pickle.load(questions)
        except EOFError:
            return
        try:
            found = [encode_example(example, tokenizer) for example in examples]
            encoded = [(one.ids, one.mask, one.left_out) for one in found]
        except LorafoldError:
            encoded = None
        pickle.dump(encoded, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
