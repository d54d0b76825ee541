package main
func entitySyncSuite(s *Suite){}
func rocketmqSuite(s *Suite){}
func rocketmqRestartSuite(s *Suite){}
func tutorialSuite(s *Suite){}
func mqttSuite(s *Suite){}
func acrossSuite(s *Suite){}
func tutorialProducer(s *Suite){}
func tutorialConsumer(s *Suite){}
