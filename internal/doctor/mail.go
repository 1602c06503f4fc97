package doctor

import (
	"context"
	"time"
)

// mail reaches the mail server as the daemon would, logs in, and sends nothing.
func mail(ctx context.Context, o *Options) Finding {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if err := o.Mail(ctx); err != nil {
		return bad(Warn, "mend [mail] in the configuration, or the server: packagers are not written to until then, and letters are kept for mail.give_up",
			"%v", err)
	}
	return ok("%s takes mail from here", o.MailServer)
}
