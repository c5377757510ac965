"""Stand-ins for a CUDA graph (`fastbin.graphs.Graph`), where there is no GPU."""


class StandIn:
    """For a CUDA graph: the same calls, on inputs of its own."""

    made = 0

    def __init__(self, call, *inputs):
        StandIn.made += 1
        self.call, self.inputs = call, [t.clone() for t in inputs]

    def __call__(self, *inputs):
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.call(*self.inputs)


class Frozen(StandIn):
    """A capture that misses the constants: those of the first step stay."""

    def __call__(self, batch, hyper):
        self.call(batch, self.inputs[1])
