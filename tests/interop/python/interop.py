"""Drives a broker with the Python clients that people use: pika, paho-mqtt and stomp.py.

Every suite is a subcommand, addresses are options. Prints one line for each check, `ok NAME` or
`FAILED NAME: why`, and ends with a non-zero status when one failed.
"""

import argparse
import sys

import amqp
import mqtt
import mqtt_restart
import stomps
from checks import Suite

SUITES = {"amqp": amqp.checks, "mqtt": mqtt.checks, "mqtt-restart": mqtt_restart.checks, "stomp": stomps.checks}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--amqp", default="amqp://guest:guest@127.0.0.1:5672/")
    parser.add_argument("--mqtt", default="127.0.0.1:1883")
    parser.add_argument("--stomp", default="127.0.0.1:61613")
    parser.add_argument("--stomp-websocket", default="127.0.0.1:15674")
    parser.add_argument("--mqtt-websocket", default="127.0.0.1:8083")
    parser.add_argument("--name-server", help="not used by the Python clients")
    parser.add_argument("--only", default="", help="run only checks whose name matches this regular expression")
    options = parser.parse_args()
    suite = Suite(options)
    for check in SUITES[options.suite]:
        suite.run(check)
    sys.exit(1 if suite.failed else 0)


if __name__ == "__main__":
    main()
