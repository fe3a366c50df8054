/** Objects that live for a while and die, in a small heap: what a collector of garbage moves about all the time. */
import java.util.HashMap;
import java.util.Map;

public final class Churn {
    public static void main(String[] words) throws InterruptedException {
        Map<Integer, byte[]> kept = new HashMap<>();
        System.out.println("ready");
        for (int turn = 0; ; turn++) {
            byte[] content = new byte[100 + turn % 3000];
            content[turn % content.length] = (byte) turn;
            kept.put(turn % 20000, content);
            if (turn % 2000 == 0) {
                Thread.sleep(1);
            }
        }
    }
}
