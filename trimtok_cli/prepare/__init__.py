"""Sample -> Prepared: files are read and decoded, and a processor makes a model's inputs of them.

`sample` does so for one sample, `pool` for many in worker processes, `worker` is the processes'
side. Knows no decoder and touches no device.
"""
