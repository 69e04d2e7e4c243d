"""Why a classifier gives a text its label: layers, neurons, tokens and n-grams that spoke for it.

explain       classifier, texts -> an Explanation each
Explanation   a score, taken apart into Layer, Neuron, Token and Gram records
map_layers    a saved model -> the neurons that it uses, layer by layer, without any text
layers_of     the same of a classifier in memory
"""

from sonde.explanation.layers import layers_of, map_layers
from sonde.explanation.records import Explanation, Gram, Layer, Neuron, Token
from sonde.explanation.scores import explain

__all__ = ["Explanation", "Gram", "Layer", "Neuron", "Token", "explain", "layers_of", "map_layers"]
