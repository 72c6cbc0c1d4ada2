"""What Keras leaves out when it saves a model."""

import keras


class KeepsRandomStates:
    """Saves the states of random layers with a model, so that a run goes on as it was.

    Keras saves a model's weights; the states of its dropout and augmentation layers are variables,
    but not weights.
    """

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for index, state in enumerate(random_states(self)):
            store[f"random_{index}"] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        saved = {key: store[key] for key in store.keys()}
        for index, state in enumerate(random_states(self)):
            if f"random_{index}" in saved:
                state.assign(saved.pop(f"random_{index}"))
        super().load_own_variables(saved)


def random_states(model):
    """The variables that Keras doesn't save with weights: the states of random layers."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]
