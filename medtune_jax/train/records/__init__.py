"""What a run tells: metrics, the progress line, boards, pictures, traces, and the formulas behind its numbers."""
