package rocketbridge.interop;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Pattern;

/** Runs checks and prints their lines. A check throws when something does not hold. */
final class Suite {
    /** Longest time that one check may take, seconds. */
    static final int LIMIT = 180;

    /** Longest time that one thing may take, seconds. */
    static final int PATIENCE = 120;

    /** None, one byte, one frame, more than 64 KiB, many frames. */
    static final int[] BODY_SIZES = {0, 1, 256, 65_537, 1 << 20, 4 << 20};

    private static final Random RANDOM = new Random();

    private final Map<String, String> options;
    private final Deque<AutoCloseable> cleanups = new ArrayDeque<>();
    private int failed;

    /** {@code words} are a program's: behind the suite's name come options, each before its value. */
    Suite(String[] words, Map<String, String> defaults) {
        options = new HashMap<>(defaults);
        options.putIfAbsent("--only", "");
        for (int i = 1; i + 1 < words.length; i += 2) {
            options.put(words[i], words[i + 1]);
        }
    }

    interface Check {
        void run() throws Exception;
    }

    /** Ends the program. Clients of failed checks leave threads behind, which must not keep it. */
    void end() {
        System.out.flush();
        Runtime.getRuntime().halt(failed > 0 ? 1 : 0);
    }

    String option(String name) {
        return options.get(name);
    }

    void check(String name, Check check) {
        if (!Pattern.compile(option("--only")).matcher(name).find()) {
            return;
        }
        ExecutorService executor = Executors.newSingleThreadExecutor(body -> {
            Thread thread = new Thread(body, name);
            thread.setDaemon(true);
            return thread;
        });
        Future<?> running = executor.submit(() -> {
            check.run();
            return null;
        });
        Throwable problem = null;
        try {
            running.get(LIMIT, TimeUnit.SECONDS);
        } catch (ExecutionException failure) {
            problem = failure.getCause();
        } catch (TimeoutException | InterruptedException failure) {
            problem = new AssertionError("does not end within " + LIMIT + " s");
        }
        executor.shutdownNow();
        while (!cleanups.isEmpty()) {
            try {
                cleanups.pop().close();
            } catch (Exception ignored) {
                // Cleaning up must not hide why a check failed.
            }
        }
        if (problem == null) {
            System.out.println("ok " + name);
        } else {
            failed++;
            problem.printStackTrace();
            String text = String.valueOf(problem).replace('\n', ' ');
            System.out.println("FAILED " + name + ": " + text.substring(0, Math.min(text.length(), 500)));
        }
        System.out.flush();
    }

    /** Is done when the check ends, last first. */
    void after(AutoCloseable cleanup) {
        cleanups.push(cleanup);
    }

    /** Says why it was late, or nothing. */
    interface Attempt {
        String late() throws Exception;
    }

    /**
     * Does something again when it was late: a busy machine is late now and then, a broker that waits for the wrong
     * thing always. What must hold in any case the attempt checks itself.
     */
    static void inTime(Attempt attempt) throws Exception {
        List<String> tried = new ArrayList<>();
        while (tried.size() < 4) {
            String late = attempt.late();
            if (late.isEmpty()) {
                return;
            }
            tried.add(late);
        }
        throw new AssertionError("never in time: " + tried);
    }

    static void equal(Object got, Object want, String what) {
        if (!Objects.deepEquals(got, want)) {
            throw new AssertionError(what + ": got " + got + ", want " + want);
        }
    }

    static void isTrue(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }

    static <V> V next(BlockingQueue<V> inbox, String what) throws InterruptedException {
        V value = inbox.poll(PATIENCE, TimeUnit.SECONDS);
        isTrue(value != null, what + ": nothing came within " + PATIENCE + " s");
        return value;
    }

    static String unique(String kind) {
        return "interop-" + kind + "-" + Long.toHexString(RANDOM.nextLong());
    }

    static byte[] randomBody(int size) {
        byte[] body = new byte[size];
        RANDOM.nextBytes(body);
        return body;
    }
}
