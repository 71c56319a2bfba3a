"""An agent by the name that pages give to that of a reader."""

from merlin import RLLSTM


class Mine(RLLSTM):
    pass
