"""What is closed at the end of a `with` block, whatever ends the block."""

from jaxformer.host.console import note


class Closing:
    """Closes itself at the end of its block. An error that ended the block goes on, and one of closing is told."""

    def close(self) -> None:
        """Closes; what is inherited from this says how."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as second:
            note(str(second))
