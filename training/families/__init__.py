"""The families of networks: a new one is a file beside this, a preset, and one line here."""

from training.families import cnn, lenet5, mlp, recurrent
from training.families.base import Family

FAMILIES: dict[str, Family] = {
    mlp.NAME: mlp.Perceptrons(),
    lenet5.NAME: lenet5.LeNets(),
    cnn.NAME: cnn.CNNs(),
    recurrent.NAME: recurrent.Recurrents(),
}
