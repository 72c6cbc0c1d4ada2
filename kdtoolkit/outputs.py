"""What Keras's label losses and metrics see of the students: their outputs, by name."""

import keras

from kdtoolkit.functional import mean_probabilities

#: The name of the mean of all students, beside theirs.
ENSEMBLE = "ensemble"


def keys_of(model):
    """Keys of a model's outputs if they are a dict and known before it runs, else None."""
    known = getattr(model, "output_keys", None)
    if known:
        return list(known)
    outputs = getattr(model, "output", None) if getattr(model, "inputs", None) else None
    return list(outputs) if isinstance(outputs, dict) else None


def layer_names(model):
    """`{key: name of the layer that gives it}` for a functional model whose output is a dict."""
    # Keras names the layers of a dict's outputs in the order of its flat form.
    keys = keras.tree.flatten({key: key for key in model.output})
    return dict(zip(keys, model.output_names, strict=True))


class Outputs:
    """The names under which Keras sees the outputs of one student or of several.

    One student's output stays as it is. Of several students each output gets a name of its own in
    one flat dict, `name` or `name_key`, since Keras's metrics take no nested ones.

    Args:
        students: `{name: model}`.

    Attributes:
        ensemble_of: None, or the key of the output whose mean over the students is one more entry,
            "ensemble"; "" where students have one output each.
    """

    def __init__(self, students):
        self.students = list(students)
        self.keys = {name: keys_of(model) for name, model in students.items()}
        self.ensemble_of = None

    @property
    def several(self):
        return len(self.students) > 1

    @property
    def only_keys(self):
        """Keys of a single student's outputs, None where it has one."""
        return None if self.several else self.keys[self.students[0]]

    @property
    def names(self):
        """Names of all outputs of several students, `{name: student}`, without the ensemble.

        Empty for one student, whose outputs need none.

        Raises:
            ValueError: two outputs of one name.
        """
        found = {}
        for student in self.students if self.several else ():
            for key in self.keys[student] or [None]:
                name = self._name(student, key)
                if name in found:
                    raise ValueError(
                        f"'{found[name]}' and '{student}' both have an output called '{name}'. "
                        "Expected another name for one of these students."
                    )
                found[name] = student
        return found

    def _name(self, student, key):
        return student if key is None else f"{student}_{key}"

    def of(self, views):
        """The outputs in the students' views."""
        if not self.several:
            return views[self.students[0]]["output"]
        found = {}
        for student in self.students:
            output = views[student]["output"]
            for key in self.keys[student] or [None]:
                found[self._name(student, key)] = output if key is None else output[key]
        if self.ensemble_of is not None:
            names = [self._name(name, self.ensemble_of or None) for name in self.students]
            found[ENSEMBLE] = mean_probabilities([found[name] for name in names])
        return found

    def targets(self, y, sample_weight, outputs):
        """Labels and weights that were given once, for each of `outputs`: `(y, sample_weight)`."""
        # For the outputs of one student Keras spreads the weights by itself.
        weights = self._spread(sample_weight, outputs) if self.several else sample_weight
        return self._spread(y, outputs), weights

    def _spread(self, value, outputs):
        if value is None or not isinstance(outputs, dict):
            return value
        if not keras.tree.is_nested(value):
            return dict.fromkeys(outputs, value)
        if self.several:
            raise ValueError(
                "All students learn from the same labels. Expected `y` and `sample_weight` as one "
                f"array each. Received: a {type(value).__name__} of {len(value)}"
            )
        return value

    def for_each(self, given, ensemble=False):
        """What `compile` was given, by the names of the outputs; see `Distiller.compile`.

        Args:
            given: a value for each student, a dict by student, or a dict by output key for each.
            ensemble: whether the ensemble gets it too.

        Raises:
            ValueError: a key that is no output's.
        """
        if given is None or not self.several:
            return given
        ensemble = ensemble and self.ensemble_of is not None
        keys = {key for known in self.keys.values() for key in known or ()}
        names = {*self.students, *[ENSEMBLE][: ensemble and ENSEMBLE not in keys]}
        by_student = isinstance(given, dict) and set(given) <= names
        found = {}
        for student in self.students:
            own = given.get(student) if by_student else given
            found.update({} if own is None else self._named(own, student))
        if ensemble:
            own = given.get(ENSEMBLE) if by_student else given
            own = own.get(self.ensemble_of) if isinstance(own, dict) else own
            found.update({} if own is None else {ENSEMBLE: own})
        return found

    def _named(self, given, student):
        """`{name of an output: what it gets}` of one student."""
        keys = self.keys[student]
        if not isinstance(given, dict):
            return {self._name(student, key): given for key in keys or [None]}
        unknown = set(given) - set(keys or [])
        if unknown:
            expected = f"some of its outputs {keys}" if keys else "no dict, since it has one output"
            raise ValueError(
                f"The dict given to `compile` doesn't fit student '{student}'. Expected the names "
                f"of the students, {self.students}, or for this student {expected}. Received the "
                f"keys {sorted(given)}"
            )
        return {self._name(student, key): value for key, value in given.items()}
