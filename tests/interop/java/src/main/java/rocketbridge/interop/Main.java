package rocketbridge.interop;

import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * Drives a broker with the Java clients that people use: amqp-client and rocketmq-client.
 *
 * <p>Every suite is a subcommand, addresses are options. Prints one line for each check, {@code ok NAME} or
 * {@code FAILED NAME: why}, and ends with a non-zero status when one failed.
 */
public final class Main {
    public static void main(String[] words) throws Exception {
        Map<String, String> options = new HashMap<>();
        options.put("--amqp", "amqp://guest:guest@127.0.0.1:5672/");
        options.put("--name-server", "127.0.0.1:9876");
        options.put("--only", "");
        for (int i = 1; i + 1 < words.length; i += 2) {
            options.put(words[i], words[i + 1]);
        }
        Suite suite = new Suite(options);
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
                    RocketMqLater.sendHalf(options.get("--name-server"), options.get("--group"), options.get("--topic"));
                } catch (Exception problem) {
                    problem.printStackTrace(); // and the client's threads must not keep the process
                }
                Runtime.getRuntime().halt(1);
                break;
            default:
                System.err.println("usage: Main amqp|rocketmq|rocketmq-later [options]");
                System.exit(2);
        }
        // Clients of failed checks leave threads behind.
        System.out.flush();
        TimeUnit.MILLISECONDS.sleep(10);
        Runtime.getRuntime().halt(suite.failed() > 0 ? 1 : 0);
    }
}
