"""Why a run waits, or why it ended: the table of reasons, the evidence, and the words for both."""
