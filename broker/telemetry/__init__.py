"""What can be seen of a running broker from outside: metrics, and traces for who wants them.

`catalogue` is the list of every metric, `metrics` what a process counts as it works, `reports` how the processes of one
broker hand theirs to the control process, `tracing` the spans. Nothing here decides anything, nothing on the main path
waits for it, and no metric, label or span carries more than ids of the registry and the broker's own words.
"""
