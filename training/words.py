"""The words that a request is written in, on the node and in a run file."""

AUTO, NONE, ON, OFF, UNIFIED = "auto", "none", "on", "off", "Hyper-SD unified"
STYLE_THEN_DISTIL, STYLE, DISTIL, FEEDBACK = "style, then distil", "style finetune", "TSCD distillation", "human feedback"
OBJECTIVES = (STYLE_THEN_DISTIL, STYLE, DISTIL, FEEDBACK)
