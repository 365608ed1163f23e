def failure(program, outcome, inputs):
    return RuntimeError((outcome.stage, outcome.record, outcome.result, program.steps[program.step_of[outcome.record]] if outcome.stage>=4 else None))
