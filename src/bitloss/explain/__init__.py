"""Why two files differ or do not: findings from what was measured."""
