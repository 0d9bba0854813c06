"""The algorithm itself: how evaluations run, what a stage is, and one process that does it all.

Read in this order: schedule, stages, stage, evaluator, oracle. docs/algorithm.md says what they do.
"""
