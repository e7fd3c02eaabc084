"""Measuring finished models: losses and agreement with a teacher, answers, and the tasks of EleutherAI's harness."""
