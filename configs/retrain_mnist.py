"""The gold standard: `pretrain_mnist` without the T-shirt, from scratch.

python -m jaxunlearn.main --config=configs/retrain_mnist.py --workdir=runs/retrain_mnist
python -m jaxunlearn.export --run=runs/retrain_mnist --out=jaxunlearn/assets/retrain_mnist

26 minutes on one core; assets/retrain_mnist/training.json has the loss curve.
"""

from configs import pretrain_mnist


def get_config():
  config = pretrain_mnist.get_config()
  config.streams.x = "retain"
  return config
