package rocketbridge.interop;

import java.util.Map;

/**
 * Drives a broker with the Java clients that people use: amqp-client and rocketmq-client.
 *
 * <p>Every suite is a subcommand, addresses are options. Prints one line for each check, {@code ok NAME} or
 * {@code FAILED NAME: why}, and ends with a non-zero status when one failed.
 */
public final class Main {
    public static void main(String[] words) throws Exception {
        Suite suite = new Suite(words, Map.of(
            "--amqp", "amqp://guest:guest@127.0.0.1:5672/",
            "--name-server", "127.0.0.1:9876"));
        switch (words.length == 0 ? "" : words[0]) {
            case "amqp":
                new Amqp(suite).run();
                break;
            case "rocketmq":
                new RocketMqProducer(suite).run();
                new RocketMqConsumer(suite).run();
                break;
            case "rocketmq-later":
                new RocketMqLater(suite).run();
                break;
            case "half-producer":
                try {
                    RocketMqLater.sendHalf(suite.option("--name-server"), suite.option("--group"), suite.option("--topic"));
                } catch (Exception problem) {
                    problem.printStackTrace(); // and the client's threads must not keep the process
                }
                Runtime.getRuntime().halt(1);
                break;
            default:
                System.err.println("usage: Main amqp|rocketmq|rocketmq-later [options]");
                System.exit(2);
        }
        suite.end();
    }
}
