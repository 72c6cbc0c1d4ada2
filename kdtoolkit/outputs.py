"""What Keras's label losses and metrics see of the students: their outputs, by name."""

import keras

from kdtoolkit.functional import mean_probabilities

#: The name of the mean of all students, beside theirs.
ENSEMBLE = "ensemble"


def keys_of(model):
    """Keys of a functional model's outputs if they are a dict, else None."""
    outputs = getattr(model, "output", None) if getattr(model, "inputs", None) else None
    return list(outputs) if isinstance(outputs, dict) else None


class Outputs:
    """The names under which Keras sees the outputs of one student or of several.

    One student's output stays as it is. Of several students each output gets a name of its own in
    one flat dict, `name` or `name_key`, since Keras's metrics take no nested ones.

    Args:
        students: `{name: model}`.
        ensemble_of: None, or the key of the output whose mean over the students is one more entry,
            "ensemble"; "" where students have one output each.
    """

    def __init__(self, students, ensemble_of=None):
        self.students = list(students)
        self.keys = {name: keys_of(model) for name, model in students.items()}
        self.ensemble_of = ensemble_of

    @property
    def several(self):
        return len(self.students) > 1

    @property
    def names(self):
        """Names of all outputs of several students, `{name: student}`, without the ensemble."""
        return {
            self._name(student, key): student
            for student in self.students
            for key in self.keys[student] or [None]
        }

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

    def spread(self, value, outputs):
        """Labels or weights that were given once, for each of `outputs`."""
        given_by_output = not self.several and keras.tree.is_nested(value)
        if value is None or given_by_output or not isinstance(outputs, dict):
            return value
        return dict.fromkeys(outputs, value)

    def for_each(self, given, copy=lambda leaf, name: leaf, ensemble=False):
        """What `compile` was given, by the names of the outputs; see `Distiller.compile`.

        Args:
            given: a value for each student, a dict by student, or a dict by output key for each.
            copy: function `(leaf, name of the output)` that makes an output's own.
            ensemble: whether the ensemble gets it too.

        Raises:
            ValueError: a key that is no output's.
        """
        if given is None or not self.several:
            return given
        by_student = isinstance(given, dict) and set(given) <= {*self.students, ENSEMBLE}
        found = {}
        for student in self.students:
            own = given.get(student) if by_student else given
            if own is not None:
                found.update(self._named(own, student))
        if ensemble and self.ensemble_of is not None:
            own = given.get(ENSEMBLE) if by_student else given
            own = own.get(self.ensemble_of) if isinstance(own, dict) else own
            found.update({} if own is None else {ENSEMBLE: own})
        return {
            name: keras.tree.map_structure(lambda leaf, name=name: copy(leaf, name), value)
            for name, value in found.items()
        }

    def _named(self, given, student):
        """`{name of an output: what it gets}` of one student."""
        keys = self.keys[student]
        # A dict with "class_name" is one serialised object.
        if not isinstance(given, dict) or "class_name" in given:
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
